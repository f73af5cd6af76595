"""One thread per test process: several processes share the cores, and threads would wait."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and TVM are imported
os.environ.setdefault("TVM_NUM_THREADS", "1")
