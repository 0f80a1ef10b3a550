"""Goes into images, beside Flower: the learner and the aggregator that FLOps starts with `python main.py ARGS`.

learner.py, aggregator.py          the launchers: they start what follows and end with one exit code
learner_app.py, aggregator_app.py  what Flower runs in its own processes (they import flwr; nothing else here does)
worker.py                          the user's model, in the user's environment, behind a socket
"""
