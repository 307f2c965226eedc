"""Make the wheel and the archive that a cluster needs, of one commit: the same commit gives the same bytes.

The archive for `spark-submit --py-files` holds what the wheel holds: Spark takes no file named .whl. The manifest
beside them says the commit, the digests, and the versions that were locked at it.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def package(dist: Path, commit: str = "HEAD") -> list[Path]:
    """The files written into `dist`: wheel, archive, manifest. Raises CalledProcessError where git or build fails."""
    with tempfile.TemporaryDirectory() as scratch:
        # Of the commit, not of the working tree: what lies about there must not travel.
        tree = Path(scratch) / "tree"
        packed = _git("archive", "--format=tar", commit)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tree, filter="data")
        wheel = _wheel(tree, Path(scratch), _git("log", "-1", "--format=%ct", commit).decode().strip())
        dist.mkdir(parents=True, exist_ok=True)
        written = [dist / wheel.name, dist / f"{wheel.name.split('-py3')[0]}-py-files.zip"]
        for path in written:
            shutil.copyfile(wheel, path)
        manifest = _manifest(tree, _git("rev-parse", commit).decode().strip(), written)
    path = dist / f"{written[0].name.split('-py3')[0]}-manifest.json"
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", "utf-8")
    return [*written, path]


def _wheel(tree: Path, scratch: Path, committed_at: str) -> Path:
    # Zip files keep times: setuptools takes those of SOURCE_DATE_EPOCH (reproducible-builds.org). And modes: of git's
    # files only the execute bit is a fact, the rest is the umask of whoever unpacks them.
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(scratch), str(tree)]
    subprocess.run(
        command, check=True, stdout=sys.stderr, env=os.environ | {"SOURCE_DATE_EPOCH": committed_at}, umask=0o022
    )
    [wheel] = scratch.glob("*.whl")
    return wheel


def _manifest(tree: Path, commit: str, files: list[Path]) -> dict[str, Any]:
    project = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (tree / "requirements.lock").read_text("utf-8").splitlines()
    return {
        "name": project["name"],
        "version": project["version"],
        "commit": commit,
        "python": project["requires-python"],
        "locked": dict(line.split("==") for line in lines if "==" in line),
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


if __name__ == "__main__":
    for path in package(ROOT / "dist"):
        print(path.relative_to(ROOT))
