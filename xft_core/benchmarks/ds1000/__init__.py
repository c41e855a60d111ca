"""DS-1000: 1,000 problems of seven data-science libraries, graded by their own tests in an environment of their time."""
