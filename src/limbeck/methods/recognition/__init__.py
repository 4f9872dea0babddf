"""Recognition: classifiers that learn from classifiers. Rooms hold no task; train them with limbeck.training.Loop."""
