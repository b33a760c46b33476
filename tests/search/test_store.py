"""Sweeps on disk: killed, resumed, raced for, in processes, on a cluster, on a full disk."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from jupyter_client import KernelManager

from pvmmu.errors import SearchError
from pvmmu.hooks import catalogue
from pvmmu.search import store as store_module, sweep as module
from pvmmu.search.store import jobs_of
from pvmmu.search.sweep import sweep

TRACES, MODES = ["fork.1", "mmap.16", "fork.16"], ["direct", "vmi"]
#: What a process of its own does; one job for each shard, so that there are many to be stopped in.
SCRIPT = """
    import sys
    from functools import partial
    from pvmmu.search import sweep as module
    from pvmmu.search.store import jobs_of
    module.jobs_of = partial(jobs_of, size=1)
    module.sweep({traces}, "all", {modes}, store=sys.argv[1], progress=False)
"""


def script(folder, extra=""):
    body = textwrap.dedent(SCRIPT).format(traces=TRACES, modes=MODES)
    return [sys.executable, "-c", textwrap.dedent(extra) + body, str(folder)]


@pytest.fixture(autouse=True)
def _small_jobs(monkeypatch):
    monkeypatch.setattr(module, "jobs_of", partial(jobs_of, size=1))


def swept(folder, **kw):
    return sweep(TRACES, "all", MODES, store=folder, progress=False, **kw)


def parts(folder):
    return sorted((folder / "parts").glob("*.parquet"))


def contents(folder):
    """Every row of every part, by the part's name."""
    return {p.name: pq.read_table(p).to_pylist() for p in parts(folder)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "s"
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "jobs_of", partial(jobs_of, size=1))
    table = swept(folder)
    patch.undo()
    return folder, table


def same(folder, undisturbed):
    assert contents(folder) == contents(undisturbed[0])


def test_rows_are_those_of_a_sweep_in_memory(undisturbed):
    folder, table = undisturbed
    memory = sweep(TRACES, "all", MODES, progress=False)
    pd.testing.assert_frame_equal(table, memory)
    assert table.attrs["complete"]
    assert table.groupby(["trace", "mode"])["hook_sets"].sum().eq(2 ** len(catalogue())).all()
    assert len(parts(folder)) > 20


def test_a_finished_sweep_is_only_read(undisturbed, monkeypatch):
    folder, table = undisturbed
    before = {p: p.stat().st_mtime_ns for p in parts(folder)}
    monkeypatch.setattr(module, "write_job", lambda *a: 1 / 0)
    pd.testing.assert_frame_equal(swept(folder), table)
    assert {p: p.stat().st_mtime_ns for p in parts(folder)} == before


@pytest.mark.slow
def test_killed_at_ten_random_moments(undisturbed, tmp_path):
    """By SIGKILL; the next run continues; at the end nothing is lost, doubled or done twice."""
    r, folder, killed, stamps = random.Random(8), tmp_path / "s", 0, {}
    for _ in range(40):
        process = subprocess.Popen(script(folder), stderr=subprocess.PIPE)
        wanted = len(stamps) + (killed < 10) * r.choice((0, 1, 1, 2))
        while process.poll() is None and not (killed < 10 and len(parts(folder)) >= wanted > 0):
            time.sleep(0.002)
        time.sleep(r.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        code, error = process.wait(), process.stderr.read().decode()
        process.stderr.close()
        assert code in (0, -signal.SIGKILL), error
        for p in parts(folder):
            assert stamps.setdefault(p.name, p.stat().st_mtime_ns) == p.stat().st_mtime_ns
        if code == 0:
            break
    assert killed >= 10
    assert code == 0
    same(folder, undisturbed)
    assert not list((folder / "parts").glob(".*"))


@pytest.mark.slow
def test_a_killed_kernel_loses_nothing(undisturbed, tmp_path):
    """A notebook's kernel, as Jupyter starts it, gone in the middle; the next one goes on."""
    folder = tmp_path / "s"
    code = script(folder)[2].replace("sys.argv[1]", repr(str(folder)))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)})
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        client.execute(code)
        wait_for(lambda: len(parts(folder)) >= 3)
        manager.signal_kernel(signal.SIGKILL)
        wait_for(lambda: not manager.is_alive())
        done = contents(folder)
        assert 3 <= len(done) < len(contents(undisturbed[0]))
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=120)
        client.execute_interactive(code, timeout=300)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    same(folder, undisturbed)


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_only_one_sweep_writes(undisturbed, tmp_path):
    store = store_module.Store(tmp_path / "s", [])
    with store.writing(), pytest.raises(SearchError, match=f"writes here .process {os.getpid()}"):
        swept(tmp_path / "s")
    waits = """
        import time
        from pvmmu.search import sweep
        sweep.write_job = lambda *a: time.sleep(60)
    """
    holder = subprocess.Popen(script(tmp_path / "t", waits), stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "t" / "manifest.json").exists)
        with pytest.raises(SearchError, match=f"another sweep writes here .process {holder.pid}"):
            swept(tmp_path / "t")
    finally:
        holder.kill()
        holder.wait()
    swept(tmp_path / "t")  # the lock went with its holder
    same(tmp_path / "t", undisturbed)


def test_another_model_does_not_mix(undisturbed, tmp_path, monkeypatch):
    swept(tmp_path / "s")
    before = contents(tmp_path / "s")
    monkeypatch.setattr(store_module, "model_id", lambda: "another")
    with pytest.raises(SearchError, match="was swept by another model"):
        swept(tmp_path / "s")
    assert contents(tmp_path / "s") == before


def test_another_sweep_does_not_mix(tmp_path):
    sweep(["fork.1"], ["linux-6.1"], ["vmi"], store=tmp_path / "s", progress=False)
    with pytest.raises(SearchError, match=r"holds another sweep \(of fork.1 in vmi"):
        sweep(["fork.1"], ["linux-6.1 -lazy_mmu"], ["vmi"], store=tmp_path / "s", progress=False)


# ---------------------------------------------------------------------- targets that fail
def test_a_full_disk_is_one_error_and_spares_what_is_done(undisturbed, tmp_path, monkeypatch):
    original, written = pq.write_table, []

    def write(table, path, **kw):
        written.append(path)
        if len(written) > 6:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(table, path, **kw)

    monkeypatch.setattr(store_module.pq, "write_table", write)
    with pytest.raises(SearchError, match=r"cannot be written \(No space left on device"):
        swept(tmp_path / "s")
    monkeypatch.undo()
    monkeypatch.setattr(module, "jobs_of", partial(jobs_of, size=1))
    done = contents(tmp_path / "s")
    assert done
    whole = contents(undisturbed[0])
    assert all(whole[name] == rows for name, rows in done.items())
    swept(tmp_path / "s")
    same(tmp_path / "s", undisturbed)


def test_a_limit_of_the_kernel_is_one_error(undisturbed, tmp_path):
    """A real write that fails half way: files of a process may have 8 KiB."""
    limit = 8 << 10
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # larger files
    run = subprocess.run(
        script(tmp_path, "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert re.match(r"pvmmu.errors.\w+: .*cannot be written .*File too large", last)
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
    swept(tmp_path)
    same(tmp_path, undisturbed)


@pytest.mark.parametrize("target", ["/proc/no/such", "file"])
def test_a_target_that_cannot_be_made(tmp_path, target):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SearchError, match="cannot be written"):
        swept(tmp_path / target)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_target(tmp_path):
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(SearchError, match=r"cannot be written \(Permission denied"):
        swept(tmp_path / "ro" / "s")


def test_damage_is_named(tmp_path):
    swept(tmp_path / "s")
    first, second = parts(tmp_path / "s")[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SearchError, match=f"{first.name}: not a part"):
        swept(tmp_path / "s")
    first.write_bytes(second.read_bytes())
    with pytest.raises(SearchError, match=f"{first.name}: holds another part"):
        swept(tmp_path / "s")
    first.unlink()
    swept(tmp_path / "s")  # a missing part is done again
    assert first.read_bytes() == whole
    (tmp_path / "s" / "manifest.json").write_text("{}")
    with pytest.raises(SearchError, match="not the manifest of a sweep"):
        swept(tmp_path / "s")


# ---------------------------------------------------------------------- other executors
@pytest.mark.slow
def test_loky_gives_the_same_rows(undisturbed, tmp_path):
    loky = pytest.importorskip("loky")
    with loky.ProcessPoolExecutor(2) as pool:
        table = swept(tmp_path / "s", executor=pool)
    same(tmp_path / "s", undisturbed)
    pd.testing.assert_frame_equal(table, undisturbed[1])


@pytest.mark.slow
def test_a_dead_worker_of_loky_is_an_error_and_spares_what_is_done(undisturbed, tmp_path):
    loky = pytest.importorskip("loky")
    with loky.ProcessPoolExecutor(2) as pool:
        pid = pool.submit(os.getpid).result()
        pool.submit(os.kill, pid, signal.SIGKILL)
        with pytest.raises(SearchError, match="the workers died"):
            swept(tmp_path / "s", executor=pool)
    swept(tmp_path / "s")
    same(tmp_path / "s", undisturbed)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield cluster, client


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_rows(cluster, undisturbed, tmp_path):
    _, client = cluster
    table = swept(tmp_path / "s", executor=client.get_executor(pure=False))
    same(tmp_path / "s", undisturbed)
    pd.testing.assert_frame_equal(table, undisturbed[1])
    in_memory = sweep(
        TRACES, "all", MODES, executor=client.get_executor(pure=False), progress=False
    )
    pd.testing.assert_frame_equal(in_memory, undisturbed[1])


@pytest.mark.slow
def test_a_worker_of_dask_is_killed_and_nothing_is_lost(
    cluster, undisturbed, tmp_path, monkeypatch
):
    """By its own pid, in the middle; Dask starts another and does its jobs again."""
    _, client = cluster
    victim, seen = next(iter(client.run(os.getpid).values())), []
    original = module.run

    def run(*args):
        for done in original(*args):
            seen.append(done)
            if len(seen) == 5:
                os.kill(victim, signal.SIGKILL)
            yield done

    monkeypatch.setattr(module, "run", run)
    swept(tmp_path / "s", executor=client.get_executor(pure=False))
    assert len(seen) == len(parts(tmp_path / "s"))
    assert victim not in client.run(os.getpid).values()
    same(tmp_path / "s", undisturbed)
