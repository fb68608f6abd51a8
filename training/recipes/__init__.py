"""Recipes: one TOML file per published row."""
