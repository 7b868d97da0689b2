"""The live page: jobs, workers and pictures in a browser, as the ledger tells of them."""
