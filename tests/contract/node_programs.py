"""Programs of the folder `node`, run by Node."""

import shutil
import subprocess
from pathlib import Path

NODE = Path(__file__).parent / "node"


def run_node(program: str, *arguments: str) -> str:
    """What a program prints. Its packages are installed where `make install` has not done so."""
    node, npm = shutil.which("node"), shutil.which("npm")
    assert node and npm, "node and npm are needed: apt-get install nodejs npm"
    if not (NODE / "node_modules" / "ai").is_dir():
        subprocess.run([npm, "ci", "--silent", "--no-audit", "--no-fund"], cwd=NODE, check=True, timeout=120)
    command = [node, str(NODE / program), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
