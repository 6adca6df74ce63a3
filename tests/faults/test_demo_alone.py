"""The demo on a home of its own: it starts a system, and leaves nothing of it running."""

from pathlib import Path


def test_the_demo_starts_a_system_agrees_and_leaves_nothing_running(command, tmp_path):
    said = command("demo", "--home", tmp_path / "home", "--events", 2000, "--plot", tmp_path / "out.png")
    assert said.code == 0, said.err
    assert "all roads agree with plain uproot" in said.out
    assert "Traceback" not in said.err + (tmp_path / "home" / "demo.log").read_text()
    assert not (tmp_path / "home" / "run.json").exists()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(tmp_path) not in entry.read_text()
        except OSError:
            continue
