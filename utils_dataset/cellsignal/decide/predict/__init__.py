"""From networks to scores."""
