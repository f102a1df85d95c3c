"""How much memory is at hand."""

import resource

from hpcai.data import memory


def test_memory_at_hand_is_the_least_of_what_limits_it(tmp_path, monkeypatch):
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 1000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("3:cpuset:/x\n0::/a/b\n")
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert memory.available() == 1_024_000
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500\n")
    assert memory.available() == 1_024_000
    (group / "memory.max").write_text("900000\n")
    (group / "memory.stat").write_text("anon 3\ninactive_file 100\n")
    assert memory.available() == 899_600
    (group.parent / "memory.max").write_text("1000\n")
    (group.parent / "memory.current").write_text("2000\n")
    assert memory.available() == 0


def test_memory_at_hand_knows_the_process_limit(monkeypatch):
    assert 0 < memory.available() < 1 << 50
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1 << 40, 1 << 40))
    monkeypatch.setattr(memory, "machine", lambda: None)
    monkeypatch.setattr(memory, "control_groups", list)
    assert 0 < memory.available() < 1 << 40


def tree(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_limits_of_control_groups_of_version_2(tmp_path, monkeypatch):
    group = "sys/fs/cgroup/job"
    files = {
        "proc/self/cgroup": "0::/job/step\n",
        f"{group}/step/memory.max": "1000\n",
        f"{group}/step/memory.current": "700\n",
        f"{group}/step/memory.stat": "anon 5\ninactive_file 200\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "900\n",
    }
    tree(tmp_path, files)
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert memory.control_groups() == [(tmp_path / group / "step", 500)]


def test_limits_of_control_groups_of_version_1(tmp_path, monkeypatch):
    top = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "5:devices:/x\n4:memory:/job\n0::/\n",
        f"{top}/job/memory.limit_in_bytes": "1000",
        f"{top}/job/memory.usage_in_bytes": "100",
        f"{top}/memory.limit_in_bytes": "5000",
        f"{top}/memory.usage_in_bytes": "100",
        f"{top}/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    tree(tmp_path, files)
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert dict(memory.control_groups()) == {tmp_path / top / "job": 900, tmp_path / top: 4950}
    monkeypatch.setattr(memory, "_ROOT", tmp_path / "absent")
    assert memory.control_groups() == []
