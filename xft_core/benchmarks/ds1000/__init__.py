"""DS-1000: 1,000 problems on seven data-science libraries, graded by their own tests with library releases of their time."""
