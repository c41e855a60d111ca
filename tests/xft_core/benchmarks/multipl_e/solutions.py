"""Hand-written bodies for five MultiPL-E problems in every language: a right one, a wrong one, one that does not compile.

Each begins where the prompt ends and extends to the function's last statement. CLOSING is the text that closes the function.
"""

CLOSING = {"rb": "end", "lua": "end", "java": "    }"}  # other languages use a brace in the first column

BELOW_ZERO, INCR_LIST, GCD, IS_PRIME, IS_PALINDROME = (
    "HumanEval_3_below_zero", "HumanEval_42_incr_list", "HumanEval_13_greatest_common_divisor", "HumanEval_31_is_prime",
    "HumanEval_48_is_palindrome")

Bodies = tuple[str, str, str]

SOLUTIONS: dict[str, dict[str, Bodies]] = {
    "js": {
        BELOW_ZERO: ("""\
    let balance = 0;
    for (const operation of operations) {
        balance += operation;
        if (balance < 0) {
            return true;
        }
    }
    return false;
""", "    return operations.some((operation) => operation < 0);\n", "    let balance = ;\n    return false;\n"),
        INCR_LIST: ("    return l.map((x) => x + 1);\n", "    return l.map((x) => x + 2);\n",
              "    return l.map((x) => x + 1;\n"),
        GCD: ("    while (b !== 0) {\n        [a, b] = [b, a % b];\n    }\n    return a;\n", "    return Math.min(a, b);\n",
              "    while b !== 0 {\n        [a, b] = [b, a % b];\n    }\n    return a;\n"),
        IS_PRIME: ("""\
    if (n < 2) return false;
    for (let d = 2; d * d <= n; d++) {
        if (n % d === 0) return false;
    }
    return true;
""", "    return n % 2 === 1;\n", "    if (n < 2 return false;\n    return true;\n"),
        IS_PALINDROME: ("    return text === [...text].reverse().join('');\n",
              "    return text[0] === text[text.length - 1];\n",
                        "    return text === [...text].reverse(.join('');\n"),
    },
    "ts": {
        BELOW_ZERO: ("""\
    let balance: number = 0;
    for (const operation of operations) {
        balance += operation;
        if (balance < 0) {
            return true;
        }
    }
    return false;
""", "    return operations.length > 4;\n", "    let balance: number = 'zero';\n    return balance < 0;\n"),
        INCR_LIST: ("    return l.map((x: number): number => x + 1);\n", "    return l.map((x) => x - 1);\n",
                    "    return l.map((x) => `${x}`);\n"),
        GCD: ("    return b === 0 ? a : greatest_common_divisor(b, a % b);\n", "    return a;\n",
              "    return b === 0 ? a : no_such_function(b, a % b);\n"),
        IS_PRIME: ("""\
    if (n < 2) { return false; }
    for (let d = 2; d * d <= n; d++) {
        if (n % d === 0) { return false; }
    }
    return true;
""", "    return n > 1;\n", "    for (let d = 2; d < n; d++ {\n    }\n    return true;\n"),
        IS_PALINDROME: ("    return text === text.split('').reverse().join('');\n", "    return text.length !== 5;\n",
                        "    return text === text.split('').reversed().join('');\n"),
    },
    "php": {
        BELOW_ZERO: ("""\
    $balance = 0;
    foreach ($operations as $operation) {
        $balance += $operation;
        if ($balance < 0) {
            return true;
        }
    }
    return false;
""", "    return array_sum($operations) < 0;\n", "    foreach ($operations as ) {\n    }\n    return false;\n"),
        INCR_LIST: ("    return array_map(function ($x) { return $x + 1; }, $l);\n", "    return $l;\n",
                    "    return array_map(function ($x) { return $x + 1 }, $l);\n"),
        GCD: ("    while ($b != 0) {\n        [$a, $b] = [$b, $a % $b];\n    }\n    return $a;\n", "    return $b;\n",
              "    while ($b != 0) {\n        [$a, $b] = [$b, $a % $b]\n    }\n    return $a;\n"),
        IS_PRIME: ("""\
    if ($n < 2) return false;
    for ($d = 2; $d * $d <= $n; $d++) {
        if ($n % $d === 0) return false;
    }
    return true;
""", "    return $n % 2 === 1;\n", "    for ($d = 2, $d < $n, $d++) {\n    }\n    return true;\n"),
        IS_PALINDROME: ("    return $text === strrev($text);\n", "    return strlen($text) < 4;\n",
                        "    return $text === strrev($text;\n"),
    },
    "rb": {
        BELOW_ZERO: ("""\
  balance = 0
  operations.each do |operation|
    balance += operation
    return true if balance < 0
  end
  false
""", "  operations.sum < 0\n", "  operations.each do |operation\n  end\n  false\n"),
        INCR_LIST: ("  l.map { |x| x + 1 }\n", "  l.map { |x| x }\n", "  l.map { |x| x + }\n"),
        GCD: ("  while b != 0\n    a, b = b, a % b\n  end\n  a\n", "  [a, b].min\n",
              "  while b != 0\n    a, b = b, a %\n  end\n  a)\n"),
        IS_PRIME: ("""\
  return false if n < 2
  (2..Math.sqrt(n)).each do |d|
    return false if n % d == 0
  end
  true
""", "  n.odd?\n", "  (2..Math.sqrt(n).each do |d|\n    return false\n  end\n  true\n"),
        IS_PALINDROME: ("  text == text.reverse\n", "  text[0] == text[-1]\n", "  text == = text.reverse\n"),
    },
    "lua": {
        BELOW_ZERO: ("""\
    local balance = 0
    for _, operation in ipairs(operations) do
        balance = balance + operation
        if balance < 0 then
            return true
        end
    end
    return false
""", "    return #operations > 4\n", "    for _, operation in ipairs(operations)\n        return true\n    end\n"),
        INCR_LIST: ("""\
    local result = {}
    for i, x in ipairs(l) do
        result[i] = x + 1
    end
    return result
""", "    return l\n", "    local result = {\n    return result\n"),
        GCD: ("    while b ~= 0 do\n        a, b = b, a % b\n    end\n    return a\n", "    return math.min(a, b)\n",
              "    while b != 0 do\n        a, b = b, a % b\n    end\n    return a\n"),
        IS_PRIME: ("""\
    if n < 2 then
        return false
    end
    for d = 2, math.floor(math.sqrt(n)) do
        if n % d == 0 then
            return false
        end
    end
    return true
""", "    return n % 2 == 1\n", "    if n < 2\n        return false\n    end\n    return true\n"),
        IS_PALINDROME: ("    return text == text:reverse()\n", "    return text:sub(1, 1) == text:sub(-1)\n",
                        "    return text === text:reverse()\n"),
    },
    "pl": {
        BELOW_ZERO: ("""\
    my $balance = 0;
    foreach my $operation (@$operations) {
        $balance += $operation;
        return 1 if $balance < 0;
    }
    return "";
""", '    return @$operations > 4 ? 1 : "";\n', "    my $balance = ;\n    return 1;\n"),
        INCR_LIST: ("    return [map { $_ + 1 } @$l];\n", "    return [map { $_ * 2 } @$l];\n",
              "    return [map { $_ + 1 } @$l;\n"),
        GCD: ("    while ($b) {\n        ($a, $b) = ($b, $a % $b);\n    }\n    return $a;\n", "    return $a;\n",
              "    while $b {\n        ($a, $b) = ($b, $a % $b);\n    }\n    return $a;\n"),
        IS_PRIME: ("""\
    return "" if $n < 2;
    for (my $d = 2; $d * $d <= $n; $d++) {
        return "" if $n % $d == 0;
    }
    return 1;
""", '    return $n % 2 ? 1 : "";\n', "    for my $d = 2; $d < $n; $d++ {\n    }\n    return 1;\n"),
        IS_PALINDROME: ('    return $text eq scalar reverse($text) ? 1 : "";\n',
                        '    return length($text) < 4 ? 1 : "";\n', "    return $text eq (reverse($text) ? 1 : 0;\n"),
    },
    "sh": {
        BELOW_ZERO: ("""\
    local balance=0
    for operation in $1; do
        balance=$((balance + operation))
        if [ "$balance" -lt 0 ]; then
            echo "true"
            return
        fi
    done
    echo "false"
""", '    echo "true"\n', '    for operation in $1\n        echo "true"\n    done\n'),
        INCR_LIST: ("""\
    local result=""
    for x in $1; do
        result="$result $((x + 1))"
    done
    echo $result
""", '    echo "$1"\n', "    for x in $1; do\n        echo $((x + 1)\n    done\n"),
        GCD: ("""\
    local a=$1
    local b=$2
    while [ "$b" -ne 0 ]; do
        local t=$((a % b))
        a=$b
        b=$t
    done
    echo "$a"
""", '    echo "$1"\n', '    while [ "$2" -ne 0 ]; do\n        echo "$1"\n'),
        IS_PRIME: ("""\
    local n=$1
    if [ "$n" -lt 2 ]; then echo "false"; return; fi
    for ((d = 2; d * d <= n; d++)); do
        if [ $((n % d)) -eq 0 ]; then echo "false"; return; fi
    done
    echo "true"
""", '    if [ $(($1 % 2)) -eq 1 ]; then echo "true"; else echo "false"; fi\n',
                   '    if [ "$1" -lt 2 ]; then echo "false"\n    echo "true"\n'),
        IS_PALINDROME: ("""\
    if [ "$1" = "$(echo "$1" | rev)" ]; then
        echo "true"
    else
        echo "false"
    fi
""", '    echo "true"\n', '    if [ "$1" = "$(echo "$1" | rev)" ]; then\n        echo "true"\n    els\n'),
    },
    "cpp": {
        BELOW_ZERO: ("""\
    long balance = 0;
    for (long operation : operations) {
        balance += operation;
        if (balance < 0) {
            return true;
        }
    }
    return false;
""", "    return operations.size() > 4;\n", "    long balance = 0\n    return balance < 0;\n"),
        INCR_LIST: ("    for (auto& x : l) x += 1;\n    return l;\n", "    return l;\n", "    return l + 1;\n"),
        GCD: ("    while (b != 0) {\n        long t = a % b;\n        a = b;\n        b = t;\n    }\n    return a;\n",
              "    return std::min(a, b);\n", "    return no_such_function(a, b);\n"),
        IS_PRIME: ("""\
    if (n < 2) return false;
    for (long d = 2; d * d <= n; d++) {
        if (n % d == 0) return false;
    }
    return true;
""", "    return n % 2 == 1;\n", "    for (long d = 2; d < n, d++) { }\n    return true;\n"),
        IS_PALINDROME: ("    return text == std::string(text.rbegin(), text.rend());\n",
              "    return text.front() == text.back();\n",
                        "    return text == text.reverse();\n"),
    },
    "java": {
        BELOW_ZERO: ("""\
        long balance = 0;
        for (Long operation : operations) {
            balance += operation;
            if (balance < 0) {
                return true;
            }
        }
        return false;
""", "        return operations.size() > 4;\n", "        for (operation : operations) { }\n        return false;\n"),
        INCR_LIST: ("""\
        ArrayList<Long> result = new ArrayList<>();
        for (Long x : l) {
            result.add(x + 1);
        }
        return result;
""", "        return l;\n", "        l.add(1);\n        return l;\n"),
        GCD: ("        return b == 0 ? a : greatestCommonDivisor(b, a % b);\n", "        return Math.min(a, b);\n",
              "        return gcd(a, b);\n"),
        IS_PRIME: ("""\
        if (n < 2) return false;
        for (long d = 2; d * d <= n; d++) {
            if (n % d == 0) return false;
        }
        return true;
""", "        return n % 2 == 1;\n", "        if (n < 2) return false;\n"),
        IS_PALINDROME: ("        return new StringBuilder(text).reverse().toString().equals(text);\n",
                        "        return text.length() != 5;\n", "        return text.reverse().equals(text);\n"),
    },
    "rs": {
        BELOW_ZERO: ("""\
    let mut balance = 0;
    for operation in operations {
        balance += operation;
        if balance < 0 {
            return true;
        }
    }
    false
""", "    operations.len() > 4\n",
              "    let balance = 0;\n    for operation in operations {\n        balance += operation;\n    }\n    false\n"),
        INCR_LIST: ("    l.iter().map(|x| x + 1).collect()\n", "    l\n", "    l.iter().map(|x| x + 1)\n"),
        GCD: ("""\
    let (mut a, mut b) = (a, b);
    while b != 0 {
        let t = a % b;
        a = b;
        b = t;
    }
    a
""",
              "    a.min(b)\n", "    a.gcd(b)\n"),
        IS_PRIME: ("""\
    if n < 2 {
        return false;
    }
    let mut d = 2;
    while d * d <= n {
        if n % d == 0 {
            return false;
        }
        d += 1;
    }
    true
""", "    n % 2 == 1\n", "    n % 2\n"),
        IS_PALINDROME: ("    let reversed: String = text.chars().rev().collect();\n    text == reversed\n",
              "    text.len() != 5\n",
                        "    text == text.chars().rev()\n"),
    },
    "go": {
        BELOW_ZERO: ("""\
    balance := 0
    for _, operation := range operations {
        balance += operation
        if balance < 0 {
            return true
        }
    }
    return false
""", "    return len(operations) > 4\n", "    for _, operation := range operations {\n    }\n    return false\n"),
        INCR_LIST: ("""\
    result := []int{}
    for _, x := range l {
        result = append(result, x+1)
    }
    return result
""", "    return l\n", "    result := l\n    return append(result, \"1\")\n"),
        GCD: ("    for b != 0 {\n        a, b = b, a%b\n    }\n    return a\n", "    return a\n", "    return gcd(a, b)\n"),
        IS_PRIME: ("""\
    if n < 2 {
        return false
    }
    for d := 2; d*d <= n; d++ {
        if n%d == 0 {
            return false
        }
    }
    return true
""", "    return n%2 == 1\n", "    if n < 2 {\n        return false\n    }\n"),
        IS_PALINDROME: ("""\
    for i, j := 0, len(text)-1; i < j; i, j = i+1, j-1 {
        if text[i] != text[j] {
            return false
        }
    }
    return true
""", "    return len(text) != 5\n", "    return text == reverse(text)\n"),
    },
}
