# Write the R fixtures (R 4.2): Rscript make.R
saveRDS(data.frame(a = 1:5, b = letters[1:5], c = c(1.5, NA, 3, 4, 5), f = factor(c("x", "y", "x", "y", "x"))), "df.rds")
saveRDS(list(a = 1, b = list(TRUE, NULL, "x"), s = as.name("q")), "list.rds", compress = FALSE)
saveRDS(as.character(1:10), "defer.rds")
x <- mtcars
y <- "a"
save(x, y, file = "xy.RData")
saveRDS(iris, "ascii.rds", ascii = TRUE)
saveRDS(function(x) x + 1, "fun.rds")
saveRDS(lm(mpg ~ wt, mtcars), "lm.rds")
saveRDS(new.env(), "env.rds")
