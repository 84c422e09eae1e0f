from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("06_search", tmp_path, monkeypatch)
