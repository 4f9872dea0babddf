"""Scenes: methods whose students are three-dimensional, and whose samples are what cameras see of them."""
