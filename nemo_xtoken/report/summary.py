def report_runs(runs, out): print(runs, out)
