"""The report: what the other stages measured, collected, drawn and written for people."""
