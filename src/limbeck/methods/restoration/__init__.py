"""Restoration: networks that undo a degradation of pictures. Rooms hold no task; train them with limbeck.training.Loop."""
