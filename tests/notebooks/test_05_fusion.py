from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("05_fusion", tmp_path, monkeypatch)
