"""The store under faults: killed in the middle of a build, a full disk, a flipped bit, a torn manifest."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from safetensors import SafetensorError

from lm_core.corpus.ledger_config import ValidateConfig
from lm_core.errors import IntegrityError, TryLaterError
from lm_core.runtime import Runtime
from lm_core.stages import VALIDATE
from lm_core.store import Store, disk_errors
from tests.corpus.tiny_ledger import tables, write

REPOSITORY = Path(__file__).parents[2]

# Builds the tiny corpus' `validate`; the argument says at which call of fsync the process kills itself.
CHILD = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from lm_core.corpus.ledger_config import ValidateConfig
    from lm_core.stages import VALIDATE
    from lm_core.store import Store
    from tests.corpus.tiny_ledger import tables, write

    workspace, deadly = Path(sys.argv[1]), int(sys.argv[2])
    fsync, calls = os.fsync, 0
    def fsync_or_die(number):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)
    os.fsync = fsync_or_die
    runtime, inputs = write(workspace, tables())
    Store(runtime).build(VALIDATE, ValidateConfig(), inputs)
""")


@pytest.fixture
def published(tmp_path):
    runtime, inputs = write(tmp_path, tables())
    artifact, _ = Store(runtime).build(VALIDATE, ValidateConfig(), inputs)
    return runtime, inputs, artifact


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 4, 6])
def test_a_kill_in_the_commit_publishes_nothing_and_the_next_build_succeeds(tmp_path, call):
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(call)], cwd=REPOSITORY, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("artifacts/validate/*"))
    _, inputs = write(tmp_path / "again", tables())
    artifact, cached = Store(Runtime(workspace=tmp_path, num_threads=1)).build(VALIDATE, ValidateConfig(), inputs)
    assert not cached and artifact.statistics["collected"] == 8


@pytest.mark.parametrize("name", ["fates.parquet", "record-contracts.json", "quarantine.parquet"])
def test_a_flipped_bit_is_found_before_use_and_the_file_named(published, name):
    runtime, inputs, artifact = published
    path = artifact.file(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        Store(runtime).build(VALIDATE, ValidateConfig(), inputs)


def test_a_missing_file_is_found_before_use(published):
    runtime, inputs, artifact = published
    artifact.file("fates.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"fates\.parquet is missing"):
        Store(runtime).build(VALIDATE, ValidateConfig(), inputs)


@pytest.mark.parametrize("content", [b"", b'{"kind": "Valid', b"[]", b"\xff\xfe", b"{}"])
def test_a_torn_manifest_is_refused_in_one_line(published, content):
    runtime, inputs, artifact = published
    path = artifact.file("manifest.json")
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json") as caught:
        Store(runtime).build(VALIDATE, ValidateConfig(), inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_can_be_tried_again_and_publishes_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a small file system")
    try:
        runtime, inputs = write(disk, tables())
        (disk / "ballast").write_bytes(b"x" * (256_000 - 4096 * (_blocks(disk) + 6)))
        with pytest.raises(TryLaterError, match="full"):
            Store(runtime).build(VALIDATE, ValidateConfig(), inputs)
        assert not list(disk.glob("artifacts/validate/*/manifest.json"))
        (disk / "ballast").unlink()
        artifact, cached = Store(runtime).build(VALIDATE, ValidateConfig(), inputs)
        assert not cached and artifact.statistics["kept"] == 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_libraries_that_say_in_words_that_the_disk_is_full_are_understood(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(TryLaterError, match="full"), disk_errors(tmp_path):
        raise SafetensorError(said)


def _blocks(folder: Path) -> int:
    return sum(1 + path.stat().st_size // 4096 for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_file_that_may_not_grow_publishes_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "0"],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert child.wait(timeout=60) != 0
    assert not list(tmp_path.glob("artifacts/validate/*/manifest.json"))
