"""Files and digests, locks, devices, signals, errors, random streams, versions: what every other package may use."""
