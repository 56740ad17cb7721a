"""From scores to one siRNA per well."""
