"""From networks to scores, from scores to one siRNA per well."""
