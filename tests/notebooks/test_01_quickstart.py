from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("01_quickstart", tmp_path, monkeypatch)
