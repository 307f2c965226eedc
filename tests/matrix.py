"""`make test-all`: every test, slow ones too, as other machines would run them; hours on two cores.

    tests/matrix.py [whole] [numbers] [alone] [-- OPTIONS OF PYTEST]

whole: all tests, other examples and another order each time, on the other side of the date line, with a locale that
knows ASCII only, and a Java that writes Turkish.  numbers: what computes in floating point, with every kernel that
PyTorch and OpenBLAS would choose elsewhere.  alone: each file of tests in a process of its
own, two at a time.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EVERY_TEST = ("-m", "slow or not slow")
TOGETHER = ("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")
ELSEWHERE = {
    "TZ": "Pacific/Apia",  # UTC+13, after a day that never was
    "LC_ALL": "C",
    "PYTHONUTF8": "0",  # or Python takes a C locale to mean UTF-8
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONHASHSEED": "random",
    "JDK_JAVA_OPTIONS": "-Duser.language=tr -Duser.country=TR",  # "I".toLowerCase() is no i
}
NUMERICAL = ("tests/model", "tests/jobs/embeddings", "tests/jobs/evaluation", "tests/serving", "tests/e2e/test_road.py")
KERNELS = {
    "ATEN_CPU_CAPABILITY": ("default", "avx2"),  # PyTorch
    "OPENBLAS_CORETYPE": ("Haswell", "SkylakeX"),  # NumPy and SciPy; the latter needs AVX-512
    "OMP_NUM_THREADS": ("1", "2"),
}


@dataclass(frozen=True)
class Run:
    """One call of pytest."""

    name: str
    options: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def passes(self, more: list[str]) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", *self.options, *more]
        said = None if self.takes_all_cores else subprocess.PIPE  # of two runs at once the lines would mix
        if said is None:
            print(self.title, flush=True)
        done = subprocess.run(command, cwd=ROOT, env=os.environ | self.environment, stdout=said, stderr=said, text=True)
        if said is not None:
            print(self.title, done.stdout, done.stderr, flush=True)
        return done.returncode in (0, 5)  # 5: of this file `more` leaves no test

    @property
    def takes_all_cores(self) -> bool:
        return set(TOGETHER) <= set(self.options)

    @property
    def title(self) -> str:
        return " ".join(("\n===", self.name, *(f"{name}={value}" for name, value in self.environment.items())))


def whole() -> Iterator[Run]:
    order = f"--random-order-seed={random.SystemRandom().randrange(10**6)}"
    yield Run("whole", (*EVERY_TEST, *TOGETHER, "--hypothesis-profile=all", order), ELSEWHERE)


def numbers() -> Iterator[Run]:
    avx512 = "avx512f" in Path("/proc/cpuinfo").read_text("utf-8")
    for chosen in product(*KERNELS.values()):
        if avx512 or "SkylakeX" not in chosen:
            yield Run("numbers", (*TOGETHER, *NUMERICAL), dict(zip(KERNELS, chosen, strict=True)))


def alone() -> Iterator[Run]:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = str(path.relative_to(ROOT))
        yield Run(f"alone {file}", (*EVERY_TEST, file))


PARTS = {part.__name__: part for part in (whole, numbers, alone)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    asked, more = parser.parse_args(sys.argv[1:split]).parts or list(PARTS), sys.argv[split + 1 :]
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"no part is named {unknown[0]}: name some of {', '.join(PARTS)}")
    failed = []
    for name in asked:
        runs = list(PARTS[name]())
        with ThreadPoolExecutor(1 if runs[0].takes_all_cores else 2) as pool:
            passed = pool.map(lambda run: run.passes(more), runs)
            failed += [run for run, good in zip(runs, passed, strict=True) if not good]
    for run in failed:
        print("FAILED", run.name, *run.options, *(f"{name}={value}" for name, value in run.environment.items()))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
