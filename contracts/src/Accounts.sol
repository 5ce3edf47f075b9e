// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {EscrowState} from "./EscrowState.sol";
import {IJobEscrow} from "./interfaces/IJobEscrow.sol";

/// @title Money in and out: the only part of the escrow that calls tokens and sends coin
abstract contract Accounts is EscrowState {
    using SafeCast for uint256;
    using SafeERC20 for IERC20;

    // ── In ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function deposit(address token, uint256 amount) external payable override nonReentrant whenNotPaused {
        _deposit(msg.sender, token, amount);
    }

    /// @inheritdoc IJobEscrow
    function depositFor(address owner, address token, uint256 amount)
        external
        payable
        override
        nonReentrant
        whenNotPaused
    {
        require(owner != address(0), ZeroAddress());
        _deposit(owner, token, amount);
    }

    /// @inheritdoc IJobEscrow
    function depositWithPermit(address token, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        override
        nonReentrant
        whenNotPaused
    {
        // Anyone can spend a permit they see in the mempool; what counts is the allowance.
        try IERC20Permit(token).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _depositToken(msg.sender, token, amount);
    }

    // Reached from `deposit` and `depositFor`, both payable.
    // slither-disable-next-line msg-value-in-nonpayable
    function _deposit(address owner, address token, uint256 amount) private {
        if (token == address(0)) {
            require(msg.value == amount, WrongValue(amount, msg.value));
            _creditDeposit(owner, token, amount);
        } else {
            require(msg.value == 0, WrongValue(0, msg.value));
            _depositToken(owner, token, amount);
        }
    }

    function _depositToken(address owner, address token, uint256 amount) private {
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        _creditDeposit(owner, token, IERC20(token).balanceOf(address(this)) - before);
    }

    function _creditDeposit(address owner, address token, uint256 amount) private {
        require(amount != 0, ZeroAmount());
        Account storage acc = _accounts[token][owner];
        uint128 free = (acc.free + amount).toUint128();
        acc.free = free;
        emit Deposited(owner, token, msg.sender, amount, free);
    }

    // ── Out ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function thaw(address token, uint256 amount) external override {
        Account storage acc = _accounts[token][msg.sender];
        (uint128 free, uint128 thawing) = (acc.free, acc.thawing);
        require(amount != 0, ZeroAmount());
        require(amount <= free, Insufficient(msg.sender, token, free, amount));

        // forge-lint: disable-next-line(unsafe-typecast)
        uint128 moved = uint128(amount); // at most `free`
        uint64 thawEnd = _noticeEnd();
        free -= moved;
        thawing += moved;
        _store(acc, free, thawing);
        acc.thawEnd = thawEnd;
        emit Thawing(msg.sender, token, free, thawing, thawEnd);
    }

    /// @inheritdoc IJobEscrow
    /// @dev `thawEnd` stays behind: overwriting it at the next thaw is cheaper than clearing and setting it again.
    function withdraw(address token, address to) external override nonReentrant returns (uint256 amount) {
        Account storage acc = _accounts[token][msg.sender];
        uint128 free = acc.free;
        amount = acc.thawing;
        require(amount != 0, ZeroAmount());
        require(block.timestamp >= acc.thawEnd, StillThawing(acc.thawEnd));

        _store(acc, free, 0);
        emit Withdrawn(msg.sender, token, to, amount, free, 0);
        _send(token, to, amount);
    }

    /// @inheritdoc IJobEscrow
    function withdrawEarned(address token, address to) external override nonReentrant returns (uint256 amount) {
        amount = earned[msg.sender][token];
        require(amount != 0, ZeroAmount());
        earned[msg.sender][token] = 0;
        emit EarnedWithdrawn(msg.sender, token, to, amount, 0);
        _send(token, to, amount);
    }

    /// @inheritdoc IJobEscrow
    function withdrawFees(address token, address to) external override onlyOwner nonReentrant returns (uint256 amount) {
        amount = fees[token];
        require(amount != 0, ZeroAmount());
        fees[token] = 0;
        emit FeesWithdrawn(token, to, amount);
        _send(token, to, amount);
    }

    function _send(address token, address to, uint256 amount) private {
        require(to != address(0), ZeroAddress());
        require(to != address(this), TransferFailed(to));
        if (token == address(0)) {
            (bool sent,) = to.call{value: amount}("");
            require(sent, TransferFailed(to));
        } else {
            IERC20(token).safeTransfer(to, amount);
        }
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @inheritdoc IJobEscrow
    function account(address owner, address token)
        external
        view
        override
        returns (uint128 free, uint128 thawing, uint64 thawEnd)
    {
        Account storage acc = _accounts[token][owner];
        (free, thawing) = (acc.free, acc.thawing);
        if (thawing != 0) thawEnd = acc.thawEnd;
    }
}
