"""Write the skops fixtures: pip install skops==0.16.0 scikit-learn==1.9.1 scipy numpy==2.4.6 && python make.py"""

import numpy as np
import scipy.sparse
import skops.io
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(0)
table = rng.standard_normal((60, 4))
label = (table[:, 0] > 0).astype(int)
skops.io.dump(LogisticRegression().fit(table, label), "lr.skops")
skops.io.dump(IsotonicRegression().fit(table[:, 0], label), "iso.skops")
skops.io.dump(scipy.sparse.csr_matrix(np.eye(3)), "sparse.skops")
