"""Repositories of the Hugging Face hub, fetched once and then taken from the hub's cache."""
