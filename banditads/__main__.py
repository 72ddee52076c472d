"""`python -m banditads` is the `banditads` command.

BLAS computes with one thread, which must be said before NumPy is imported: the server keeps to one processor,
where more of them would only wait for each other, and sums come out the same on any number of processors.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from banditads.cli import main

if __name__ == "__main__":
    main()
