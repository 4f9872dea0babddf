"""Every gate of f-distill's claim holds on good figures and fails on bad ones; its exact parts are exact."""
