"""Job arrays: many commands on a cluster. executor.py drives, worker.py runs on the nodes, they share a board.py."""
