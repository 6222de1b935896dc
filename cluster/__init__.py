"""The wiring: configuration, Ray actors, the ledger, the weight transaction and the loop."""
