"""Recognition: classifiers that learn from classifiers. Their task is `limbeck.tasks.Classification`."""
