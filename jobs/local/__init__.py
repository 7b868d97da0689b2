"""`sdbatch local`: ledger, store and workers as processes of one machine, on loopback."""
