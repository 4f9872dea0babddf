"""Claims: each paper's own claim as an experiment that runs on this computer, with gates that can fail."""

from limbeck.claims.claim import Check, Claim, at_least, at_most, failed, medians
from limbeck.claims.reproduce import CLAIMS, reproduce

__all__ = ["CLAIMS", "Check", "Claim", "at_least", "at_most", "failed", "medians", "reproduce"]
