"""The folder that a build makes: its files, its manifest, and what proves it undamaged."""
