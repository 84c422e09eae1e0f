from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("04_distillation", tmp_path, monkeypatch)
