"""The commands, the configuration and the wiring: the only importer of consumers and producers."""
