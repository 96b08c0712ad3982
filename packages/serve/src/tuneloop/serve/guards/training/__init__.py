"""How the guards' classifier is made: texts from grammars, features, weights. Needs scikit-learn; serving does not."""
