"""The program that runs tests: the template process and the workers that it makes.

The orchestrator starts it in a fresh Python (the *template*). It configures pytest exactly as a worker of pytest-xdist
is configured, finds the test files, and then forks *workers*, which collect, run tests and stream results. Imports are
paid for once, not once per worker.

It needs nothing but the standard library and pytest, and nothing of the package around it, because it is also carried
into sandboxes that have nothing else. ``PROTOCOL.md`` documents what it says and is told. What is decided elsewhere:
which test runs where, when a test has had its time, what is retried, and everything that a user sees.
"""
