"""The bundle on Kaggle and Colab: accounts, kernels, data sets, submissions."""
