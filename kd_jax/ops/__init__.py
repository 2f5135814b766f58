"""3-D operators, in the form that suits each platform."""
