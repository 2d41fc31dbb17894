"""Write the boosting fixtures: pip install xgboost-cpu==3.2.0 lightgbm==4.7.0 numpy==2.4.6 && python make.py"""

import lightgbm
import numpy as np
import xgboost

rng = np.random.default_rng(0)
table = rng.standard_normal((60, 4))
counts = rng.poisson(1.0, 60).astype(float)
data = xgboost.DMatrix(table, counts, feature_names=list("abcd"))
model = xgboost.train({"objective": "count:poisson", "tree_method": "hist"}, data, 3)
model.save_model("poisson.json")
model.save_model("poisson.ubj")
xgboost.train({"booster": "gblinear"}, data, 3).save_model("linear.ubj")
trees = lightgbm.LGBMClassifier(n_estimators=3, min_child_samples=2, verbose=-1).fit(table, counts > 1)
trees.booster_.save_model("lightgbm.txt")
