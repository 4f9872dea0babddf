"""Memory that is freed is there again for the next iteration, without page faults."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from limbeck.training.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def iteration():
    parts = [torch.ones(2**18) for _ in range(64)]  # 64 MiB in blocks of 1 MiB
for _ in range(3):
    iteration()
before = faults()
for _ in range(5):
    iteration()
print((faults() - before) // 5)
"""


def run(how, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean |= {"PYTHONPATH": os.pathsep.join(sys.path), "LIMBECK_TYPECHECK": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, how]
    done = subprocess.run(command, env={**clean, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_an_iteration_that_follows_another_pays_no_page_faults():
    said, faults = run("kept")
    if said == "False":
        pytest.skip("no glibc here")
    _, before = run("plain", MALLOC_MMAP_THRESHOLD_="131072")  # glibc's own start; it may have learnt better by chance
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert before > pages // 2 and faults < pages // 50


@pytest.mark.slow
def test_what_the_environment_says_stands():
    assert run("kept", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
