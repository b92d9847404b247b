import python_api


def test_runs_and_agrees_with_the_exact_search(tmp_path, capsys):
    python_api.main(tmp_path)
    printed = capsys.readouterr().out
    assert "query 0: language = 'de' AND price < 20" in printed
    assert "same as the exact search: True" in printed
