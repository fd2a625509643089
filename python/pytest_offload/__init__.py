"""`pytest --offload`: run a pytest suite in parallel sandboxes, with pytest's own output, options and exit codes."""
