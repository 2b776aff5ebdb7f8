"""The stages: each reads artefacts, writes one artefact, and runs through Ray."""
