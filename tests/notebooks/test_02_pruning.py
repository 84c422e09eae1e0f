from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("02_pruning", tmp_path, monkeypatch)
