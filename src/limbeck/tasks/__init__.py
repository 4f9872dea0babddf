"""What to distil: data, teachers, and the metrics that judge a student.

`digit_features` holds scikit-learn's 8x8 digits and the one frozen feature net of their Frechet figures.
"""

from limbeck.tasks.digit_features import DigitFeatures, digit_split, load_digit_features, load_digits

__all__ = ["DigitFeatures", "digit_split", "load_digit_features", "load_digits"]
