from xft_core.runtime.quantities import duration, fixed, parameters, signed, size, told_apart


def test_units_fit_the_quantity() -> None:
    assert [size(count) for count in (0, 999, 1000, 999_960, 70_000, 4.52e9, 2.6e12, 1e18)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.0 MB", "70.0 kB", "4.5 GB", "2.6 TB", "1000.0 PB"]
    assert [parameters(count) for count in (512, 96_256, 2_272_000, 134_515_008, 999_999_999, 6.74e9)] == [
        "512", "96.26 k", "2.27 M", "134.52 M", "1.00 B", "6.74 B"]
    assert [duration(value) for value in (0.2, 5, 90, 7300, 300000)] == ["<1 s", "5 s", "2 min", "2.0 h", "3.5 d"]


def test_what_is_not_zero_does_not_read_as_zero() -> None:
    assert [fixed(value, 1) for value in (2.5, 0.04, -0.04, 0.0, 1e-17)] == ["2.5", "0.04", "-0.04", "0.0", "0.0"]
    assert [signed(value, 1) for value in (2.5, -2.5, 0.0, -0.0, 0.04)] == ["+2.5", "-2.5", "+0.0", "+0.0", "+0.04"]


def test_two_numbers_of_which_one_is_larger_look_different() -> None:
    assert told_apart(0.5, 0.6, 4) == ("0.5000", "0.6000")
    assert told_apart(50.0, 50.004, 1) == ("50.000", "50.004")
    assert told_apart(0.5, 0.5, 1) == ("0.5", "0.5")
