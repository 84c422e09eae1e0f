from notebook_runner import run


def test_runs(tmp_path, monkeypatch):
    run("03_quantization", tmp_path, monkeypatch)
