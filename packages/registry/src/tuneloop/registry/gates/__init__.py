"""Whether a version may serve: `declared` judges what a gate policy asks for, `store` keeps reports and approvals."""
